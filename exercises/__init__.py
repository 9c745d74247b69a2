"""The questions of the lessons, a module a lesson: `from exercises.lesson_01 import q1, q2, q3`.

Each holds its starter, solution, hints and judge; see `helpers.questions` for how they work together.
"""
