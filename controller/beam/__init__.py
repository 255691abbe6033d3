"""What the rooms share: the beam token, the beam library, requests to the accelerator."""
