package api

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// requestID is the shape of an id: hex digits, dashes allowed.
const requestID = `^[0-9a-f][0-9a-f-]{14,62}[0-9a-f]$`

// Ask reads a question as people write it: a URL, HOST:PORT, HOST, or the id of a request.
func Ask(text string) (Question, error) {
	text = strings.TrimSpace(text)
	q := Question{Text: text, Method: "GET", Target: "/"}
	if text == "" || len(text) > 8<<10 {
		return q, errors.New("ask for a URL, HOST:PORT or a request id")
	}
	if strings.Contains(text, "://") {
		return q, q.url(text)
	}
	if ok, _ := regexp.MatchString(requestID, text); ok {
		q.RequestID = text
		return q, nil
	}
	if host, port, err := net.SplitHostPort(text); err == nil && !strings.Contains(port, "/") {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return q, errors.New("not a port: " + clip(port))
		}
		q.Host, q.Port = strings.ToLower(host), uint16(n)
		return q, nil
	}
	return q, q.url("https://" + text)
}

// url fills q from an absolute URL; ws and wss count as http and https with an upgrade.
func (q *Question) url(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return errors.New("not a URL: " + clip(text) + "; write https://HOST/PATH or HOST:PORT")
	}
	switch u.Scheme {
	case "http", "https":
		q.Scheme = u.Scheme
	case "ws", "wss":
		q.Scheme = "http" + strings.TrimPrefix(u.Scheme, "ws")
		q.Header = map[string]string{"upgrade": "websocket", "connection": "Upgrade"}
	default:
		return errors.New("not http or https: " + clip(text))
	}
	q.Port = 80
	if q.Scheme == "https" {
		q.Port = 443
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return errors.New("not a port: " + clip(p))
		}
		q.Port = uint16(n)
	}
	q.Host = strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if q.Host == "" {
		return errors.New("no host in " + clip(text))
	}
	q.Target = u.RequestURI()
	return nil
}

// Authority is the Host that a client would send for the question.
func (q *Question) Authority() string {
	standard := q.Scheme == "http" && q.Port == 80 || q.Scheme == "https" && q.Port == 443
	if _, err := netip.ParseAddr(q.Host); err == nil && strings.Contains(q.Host, ":") && standard {
		return "[" + q.Host + "]"
	}
	if standard {
		return q.Host
	}
	return net.JoinHostPort(q.Host, strconv.Itoa(int(q.Port)))
}
