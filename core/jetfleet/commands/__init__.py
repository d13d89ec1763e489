"""The commands of core, one module for each family; ``jetfleet.cli`` assembles them."""
