"""ImageNet: its images, and the training of AlexNet and Inception on them."""
