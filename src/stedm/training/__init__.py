"""Losses, augmentation and one thin LightningModule per stage."""
