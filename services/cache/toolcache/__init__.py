"""The tool-result cache service."""
