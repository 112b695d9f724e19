"""The digits of MNIST, shipped with the package, and captions measured from their pixels."""
