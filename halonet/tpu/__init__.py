"""What a training or evaluation step costs on a TPU, compiled without one.

`step_cost` is the entry. `hlo` and `schedules` read what the compiler writes.
"""
