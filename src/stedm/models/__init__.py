"""Networks: first stage, style encoder and aggregation, U-Net, segmenter. Plain torch modules in model folders."""
