package supervise

func deathSignal() error { return nil }
