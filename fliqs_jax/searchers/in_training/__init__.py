"""Shared by searches inside one training run: samples, controllers, clips, settings."""
