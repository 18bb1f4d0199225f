"""Mutation testing of admission: each small wrong change to it must make a test fail."""
