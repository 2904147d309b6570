"""Looking into backbones: how good their features are, and whether channels collapse."""
