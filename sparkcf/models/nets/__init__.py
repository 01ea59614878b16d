"""Models trained by gradient: tensors in, tensors out. No Spark, no files, no configuration."""
