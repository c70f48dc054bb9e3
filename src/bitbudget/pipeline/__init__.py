"""The loop that ties the floors together: forecast, quantize, verify, evaluate."""
