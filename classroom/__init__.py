"""A shared cluster for a class: `python -m helpers serve`, its learners, its limits, its board.

`folder` is what is kept between two runs; `certificates`, `server` the brokers; `learners` users, rights and cards;
`limits` what Kafka has no quota for; `board` what the teacher sees of the learners' checks.
"""
