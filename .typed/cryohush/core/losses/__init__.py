"""What training minimises: pixel, perceptual and adversarial losses, each a function of tensors."""
