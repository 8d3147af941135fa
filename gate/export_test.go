package gate

// AcceptKey is acceptKey, for apps that tests make.
func AcceptKey(key string) string { return acceptKey(key) }
