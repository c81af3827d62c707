"""A finished file in a person's hands: what it says of a photograph, how a program calls it, a page that runs it.

`answers` know what a network's outputs mean, one class a task; `network` opens what is asked.
"""
