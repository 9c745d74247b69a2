"""The frame of the questions: what runs, judges and shows an answer."""
