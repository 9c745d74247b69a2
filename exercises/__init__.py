"""The questions of the lessons, a module a lesson: `from exercises.lesson_01 import q1, q2, q3`.

Each holds its starter, solution, hints and judge; see `exercises.frame.question` for how they work together.
"""
