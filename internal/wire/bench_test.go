package wire

import "testing"

const small = "GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"

const browser = "GET /a/b?c=d HTTP/1.1\r\nHost: example.org\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Referer: https://example.org/some/where/else?with=query\r\nConnection: keep-alive\r\n" +
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n" +
	"Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\r\n"

func BenchmarkParseRequest(b *testing.B) {
	for _, c := range []struct{ name, in string }{{"small", small}, {"browser", browser}} {
		b.Run(c.name, func(b *testing.B) {
			in := []byte(c.in)
			var h Head
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				if n, _, err := ParseRequest(in, 0, &h, 100); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// parsed is the head of a message, for writing.
func parsed(b *testing.B, in string, parse func([]byte, int, *Head, int) (int, int, error)) *Head {
	var h Head
	if n, _, err := parse([]byte(in), 0, &h, 100); n == 0 || err != nil {
		b.Fatal(n, err)
	}
	return &h
}

func BenchmarkAppendRequest(b *testing.B) {
	h := parsed(b, browser, ParseRequest)
	out := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		out = AppendRequest(out[:0], h, 0)
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	h := parsed(b, "HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nServer: nginx\r\nContent-Type: text/html; charset=utf-8\r\n"+
		"Content-Length: 63\r\nLast-Modified: Mon, 02 Jan 2006 15:04:05 GMT\r\nETag: \"5f3c-1a2b3c4d\"\r\nCache-Control: max-age=3600\r\n\r\n", ParseResponse)
	out := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		out = AppendResponse(out[:0], h, ByLength, 63, false)
	}
}
