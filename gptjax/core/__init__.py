"""What every room stands on: array types, configs, errors, backend flags, processes."""
