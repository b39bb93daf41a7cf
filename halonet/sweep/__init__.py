"""Grids of trainings, shared by any number of workers, and their report."""
