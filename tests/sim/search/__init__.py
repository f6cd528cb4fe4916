"""How runs are chosen: at random, a fault at each event, two faults, every order; and how little of one is enough."""
