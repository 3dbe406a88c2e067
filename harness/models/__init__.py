"""Networks over stacked parameters; each declares its units, its layers and its head."""
