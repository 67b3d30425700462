package wire

var _ Sink = (*BodyWriter)(nil)
var _ Body = (*BodyReader)(nil)
