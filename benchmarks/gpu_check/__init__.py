"""One command for whoever has a GPU: it measures what the documents only compute (`python -m benchmarks.gpu_check`)."""
