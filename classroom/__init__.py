"""A shared cluster for a class: `python -m helpers serve`, its learners, its watchdog, its board.

`folder` is what is kept between two runs; `certificates`, `room` the brokers; `learners` users, rights and cards;
`watchdog` what Kafka has no quota for; `report` what a learner's kernel tells the board, and `board` what it shows.
"""
