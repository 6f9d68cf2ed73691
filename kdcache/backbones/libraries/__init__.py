"""Libraries whose networks are backbones by name: ``torchvision:s3d``, ``timm:…``, ``hf:…``; a file each."""
