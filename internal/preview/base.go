package preview

import "bytes"

// Base looks in the first bytes of an HTML page for its <base href>. It returns where prefix has to be put in so that a
// base which begins with a slash lies below it, and -1 where nothing is to be done. more says that the bytes to come may
// change that.
func Base(page []byte, prefix string) (at int, more bool) {
	for i := 0; ; {
		n := bytes.IndexByte(page[i:], '<')
		if n < 0 {
			return -1, true
		}
		i += n
		if rest := page[i:]; len(rest) < 4 || bytes.HasPrefix(rest, []byte("<!--")) {
			if n = bytes.Index(rest, []byte("-->")); n < 0 {
				return -1, true
			}
			i += n + 3
			continue
		}
		end := tagEnd(page[i:])
		if end < 0 {
			return -1, true
		}
		tag := page[i : i+end]
		i += end
		switch name := tagName(tag); name {
		case "base":
			if from, value := href(tag); len(value) > 0 && value[0] == '/' && !bytes.HasPrefix(value, []byte("//")) && !bytes.HasPrefix(value, []byte(prefix+"/")) {
				return i - end + from, false
			}
			return -1, false
		case "body", "/head", "/html":
			return -1, false
		case "script", "style", "title", "noscript", "template": // what stands in them is no tag of the page
			n := foldIndex(page[i:], "</"+name)
			if n < 0 {
				return -1, true
			}
			i += n
		}
	}
}

// tagEnd is the length of the tag that b begins with, -1 if it is not whole.
func tagEnd(b []byte) int {
	var quote, before byte // before is the last that was no space
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case (c == '"' || c == '\'') && before == '=':
			quote = c
		case c == '>':
			return i + 1
		}
		if !isSpace(c) {
			before = c
		}
	}
	return -1
}

// tagName is the name of a tag in lower case, with its slash; "" for what is longer than those that count.
func tagName(tag []byte) string {
	name := tag[1:]
	for i, c := range name {
		if i > 0 && c == '/' || c == '>' || isSpace(c) {
			name = name[:i]
			break
		}
	}
	if len(name) > 10 {
		return ""
	}
	return string(bytes.ToLower(name))
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' }

// href is the value of the first attribute of that name, and where it begins.
func href(tag []byte) (from int, value []byte) {
	i := len("<base")
	for i < len(tag) {
		for i < len(tag) && (isSpace(tag[i]) || tag[i] == '/') {
			i++
		}
		start := i
		for i < len(tag) && tag[i] != '=' && tag[i] != '>' && tag[i] != '/' && !isSpace(tag[i]) {
			i++
		}
		name := tag[start:i]
		for i < len(tag) && isSpace(tag[i]) {
			i++
		}
		if i >= len(tag) || tag[i] == '>' {
			return 0, nil
		}
		if tag[i] != '=' {
			continue
		}
		from, i = attribute(tag, i+1)
		if bytes.EqualFold(name, []byte("href")) {
			return from, tag[from:i]
		}
		if i < len(tag) && (tag[i] == '"' || tag[i] == '\'') {
			i++
		}
	}
	return 0, nil
}

// attribute is where the value after an equals sign begins and ends, without its quotes.
func attribute(tag []byte, i int) (from, to int) {
	for i < len(tag) && isSpace(tag[i]) {
		i++
	}
	if i < len(tag) && (tag[i] == '"' || tag[i] == '\'') {
		if n := bytes.IndexByte(tag[i+1:], tag[i]); n >= 0 {
			return i + 1, i + 1 + n
		}
	}
	from = i
	for i < len(tag) && tag[i] != '>' && !isSpace(tag[i]) {
		i++
	}
	return from, i
}

// foldIndex is bytes.Index without case, for a lower-case sep.
func foldIndex(b []byte, sep string) int {
	for i := 0; i+len(sep) <= len(b); i++ {
		if bytes.EqualFold(b[i:i+len(sep)], []byte(sep)) {
			return i
		}
	}
	return -1
}
