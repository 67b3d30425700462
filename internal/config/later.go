package config

// notYet is the one table of what the reference knows and this version does not enforce: keys by the type that would
// hold them, and single values as KEY=VALUE. A version that enforces one of them takes the line out.
var notYet = map[string][]string{
	"File": {
		"dashboard", "http3", "notify",
	},
	"Match":       {"protocols=h2", "protocols=h3", "protocols=grpc"},
	"Action":      {"protocol=h2", "protocol=h2c"},
	"App":         {},
	"TLS":         {"alpn=h2"},
	"HealthCheck": {"grpc"},
	"Security":    {"basic_auth", "forward_auth"},
}

// olderForm are keys of the older flat form that are accepted and do nothing, with what to write instead.
var olderForm = map[string]string{
	"connection_pool":  "connections to targets are kept by themselves; `pool` in an action sets how many",
	"udp_listen_addrs": "HTTP/3 is not in this version; `http3` will turn it on",
	"quic_config":      "HTTP/3 is not in this version; `http3` will turn it on",
	"http3_config":     "HTTP/3 is not in this version; `http3` will turn it on",
	"protocol_routing": "write a route for each kind, with `match: {protocols: [websocket]}`, socketio, jsonrpc or soap",
}

func later(owner, key string) bool {
	for _, k := range notYet[owner] {
		if k == key {
			return true
		}
	}
	return false
}
