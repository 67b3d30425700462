package ports

func childNoFile()     {}
func childAdopt()      {}
func childBind(string) {}
