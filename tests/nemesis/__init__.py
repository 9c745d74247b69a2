"""The proof bench: real clients on three brokers, a nemesis that harms both, and a checker that reads what they saw.

After Jepsen (https://jepsen.io), in small: `programs` are the clients, each writing down what it did and what it was
told; `bench` runs them and harms brokers and clients meanwhile; `checker` looks for a broken promise in it all.
`controls` are programs that are wrong on purpose: each must be caught, by its own invariant and no other.

    python -m tests.nemesis --seed 1 --minutes 5
"""
