"""Figures of the code itself: `python -m tests.house` prints them. What may not grow is held by `test_house.py`."""
