"""EAC-Net: electron densities as sums of equivariant atomic contributions."""
