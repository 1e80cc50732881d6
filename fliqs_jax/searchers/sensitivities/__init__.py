"""What each option of each site costs in quality, measured on a trained network."""
