package route

import (
	"bytes"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// ProtocolsOf says which protocols a request speaks. version is the one of HTTP it came in and always part of the
// answer; upgrade is the Upgrade field, if Connection named it; body is what is at hand of the body, and may be nil.
//
//	websocket  Upgrade: websocket
//	socketio   the path /socket.io/ with a parameter EIO; its upgrade is websocket too, and the narrower rule wins
//	grpc       Content-Type: application/grpc, with or without +proto, -web and the like
//	soap       a SOAPAction field, or Content-Type: application/soap+xml
//	jsonrpc    a POST with Content-Type application/json-rpc, application/jsonrpc or application/jsonrequest; or with
//	           application/json, if the path ends in /jsonrpc or /rpc or the body at hand names "jsonrpc"
func ProtocolsOf(h Fields, version plan.Protocols, method, target, upgrade, body []byte) plan.Protocols {
	set := version
	if len(upgrade) > 0 && holdsToken(upgrade, "websocket") {
		set |= plan.ProtoWebSocket
	}
	path, query, _ := bytes.Cut(target, queryMark)
	if isSocketIO(path, query) {
		set |= plan.ProtoSocketIO
	}
	if h == nil || string(method) == "GET" || string(method) == "HEAD" {
		return set
	}
	if _, ok := h.Field("Soapaction"); ok {
		set |= plan.ProtoSOAP
	}
	ct, ok := h.Field("Content-Type")
	if !ok {
		return set
	}
	ct, _, _ = bytes.Cut(ct, semicolon)
	ct = bytes.TrimSpace(ct)
	rest, ok := cutPrefixFold(ct, "application/")
	if !ok {
		return set
	}
	switch {
	case hasPrefixFold(rest, "grpc"):
		set |= plan.ProtoGRPC
	case equalFold(rest, "soap+xml"):
		set |= plan.ProtoSOAP
	case string(method) != "POST":
	case equalFold(rest, "json-rpc"), equalFold(rest, "jsonrpc"), equalFold(rest, "jsonrequest"):
		set |= plan.ProtoJSONRPC
	case equalFold(rest, "json") && (bytes.HasSuffix(path, jsonrpcPath) || bytes.HasSuffix(path, rpcPath) || bytes.Contains(body, jsonrpcName)):
		set |= plan.ProtoJSONRPC
	}
	return set
}

var (
	semicolon   = []byte(";")
	comma       = []byte(",")
	socketPath  = []byte("/socket.io")
	eio         = []byte("EIO=")
	jsonrpcPath = []byte("/jsonrpc")
	rpcPath     = []byte("/rpc")
	jsonrpcName = []byte(`"jsonrpc"`)
)

func isSocketIO(path, query []byte) bool {
	if !bytes.HasPrefix(path, socketPath) || len(path) > len(socketPath) && path[len(socketPath)] != '/' {
		return false
	}
	for len(query) > 0 {
		if bytes.HasPrefix(query, eio) {
			return true
		}
		_, query, _ = bytes.Cut(query, ampersand)
	}
	return false
}

// holdsToken reports whether a comma-separated list holds a token, compared without case.
func holdsToken(list []byte, token string) bool {
	for len(list) > 0 {
		var t []byte
		t, list, _ = bytes.Cut(list, comma)
		if equalFold(bytes.TrimSpace(t), token) {
			return true
		}
	}
	return false
}

// equalFold compares with lower-case ASCII letters, digits and signs that differ from all others in more than one bit.
func equalFold(b []byte, lower string) bool {
	return len(b) == len(lower) && hasPrefixFold(b, lower)
}

func hasPrefixFold(b []byte, lower string) bool {
	if len(b) < len(lower) {
		return false
	}
	for i := range len(lower) {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func cutPrefixFold(b []byte, lower string) ([]byte, bool) {
	if !hasPrefixFold(b, lower) {
		return b, false
	}
	return b[len(lower):], true
}
