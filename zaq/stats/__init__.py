"""What is known of tensors and layers without a real image: moments, bias shifts, sensitivities."""
