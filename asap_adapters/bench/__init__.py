"""What admission costs on this machine: `asap bench admission`. Figures are ratios within one run."""
