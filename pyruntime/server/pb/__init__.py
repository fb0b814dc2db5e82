"""Generated from protos/ by protos/generate.py; names as in the proto files."""
