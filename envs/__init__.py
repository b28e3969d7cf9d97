"""The environments: the contract, the registry, the laws, and one folder for each world."""
