"""What an operator, a model or a training step costs, before it is paid.

Nothing here computes on an accelerator: programs are traced or compiled from
shapes alone, and what they hold is counted.
"""
