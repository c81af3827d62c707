"""What quantization is: the operation, the module on an edge, where it is placed, how its range is chosen."""
