package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/preview"
)

// files serves a folder. The folder is opened anew for each request, so that one that was replaced is seen, and nothing
// outside of it can be reached, by dots or by links.
type files struct {
	root   string
	browse bool
	index  []string
	spa    bool
}

func newFiles(a *plan.Files) *files {
	d := &files{root: a.Root, browse: a.Browse, index: a.Index, spa: a.SPA}
	if len(d.index) == 0 {
		d.index = []string{"index.html"}
	}
	return d
}

func (d *files) serve(t *turn) {
	if m := string(t.ex.Req.Method); m != http.MethodGet && m != http.MethodHead {
		t.refuse(http.StatusMethodNotAllowed, "method", "", 0)
		return
	}
	name, folder, ok := fileName(string(t.ex.Req.Target))
	if !ok {
		t.refuse(http.StatusNotFound, "not_found", "", 0)
		return
	}
	root, err := os.OpenRoot(d.root)
	if err != nil {
		t.refuse(http.StatusNotFound, "not_found", err.Error(), 0)
		return
	}
	defer func() { _ = root.Close() }()
	f, info, err := d.find(root, name, folder)
	switch {
	case err == nil && info.IsDir() && !folder:
		_ = f.Close()
		d.redirect(t, name)
		return
	case err != nil && d.spa && errors.Is(err, fs.ErrNotExist):
		f, info, err = d.find(root, ".", true)
	}
	if err != nil {
		refuseFile(t, err)
		return
	}
	defer func() { _ = f.Close() }()
	if info.IsDir() {
		d.list(t, f, name)
		return
	}
	handle(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", etag(info))
		http.ServeContent(w, r, info.Name(), info.ModTime(), f)
	}), context.Background())
}

// fileName is the name under the root that a request target stands for, and whether it ends in a slash. Names that
// begin with a dot are not served, except the well-known folder (RFC 8615).
func fileName(target string) (name string, folder, ok bool) {
	raw, _, _ := strings.Cut(target, "?")
	p, err := url.PathUnescape(raw)
	if err != nil || p == "" || p[0] != '/' || strings.ContainsAny(p, "\\\x00") {
		return "", false, false
	}
	for i, seg := range strings.Split(p[1:], "/") {
		if strings.HasPrefix(seg, ".") && (i != 0 || seg != ".well-known") {
			return "", false, false
		}
	}
	name = strings.TrimPrefix(path.Clean(p), "/")
	return cmp.Or(name, "."), strings.HasSuffix(p, "/"), true
}

// find opens what name stands for: a file, the index of a folder, or the folder itself where that may be listed or has
// to be redirected to.
func (d *files) find(root *os.Root, name string, folder bool) (*os.File, fs.FileInfo, error) {
	f, info, err := openRegular(root, name)
	if err != nil {
		return nil, nil, err
	}
	if !info.IsDir() {
		if folder {
			_ = f.Close()
			return nil, nil, fs.ErrNotExist
		}
		return f, info, nil
	}
	if !folder {
		return f, info, nil
	}
	for _, index := range d.index {
		g, ginfo, err := openRegular(root, path.Join(name, index))
		if err != nil {
			continue
		}
		if !ginfo.IsDir() {
			_ = f.Close()
			return g, ginfo, nil
		}
		_ = g.Close()
	}
	if !d.browse {
		_ = f.Close()
		return nil, nil, fs.ErrNotExist
	}
	return f, info, nil
}

// openRegular opens a file or folder. Anything else (a pipe would block, a device does things) is not there.
func openRegular(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func refuseFile(t *turn, err error) {
	switch {
	case errors.Is(err, fs.ErrPermission):
		t.refuse(http.StatusForbidden, "permission", err.Error(), 0)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		t.refuse(http.StatusServiceUnavailable, "no_fd", err.Error(), 1)
	default: // not there, a file taken for a folder, a link that leads out, a name too long
		t.refuse(http.StatusNotFound, "not_found", err.Error(), 0)
	}
}

func etag(info fs.FileInfo) string {
	b := append(make([]byte, 0, 40), '"')
	b = strconv.AppendInt(b, info.ModTime().UnixNano(), 36)
	b = append(b, '-')
	b = strconv.AppendInt(b, info.Size(), 36)
	return string(append(b, '"'))
}

// redirect adds the slash that a folder's name lacks, so that links in its index work.
func (d *files) redirect(t *turn, name string) {
	to := (&url.URL{Path: "/" + name + "/"}).EscapedPath()
	if _, q, ok := strings.Cut(string(t.ex.Req.Target), "?"); ok {
		to += "?" + q
	}
	sendRedirect(t.ex, http.StatusPermanentRedirect, appendClean(nil, []byte(to)))
}

// maxListed bounds how many entries of a folder are shown.
const maxListed = 10_000

// list shows a folder's entries, folders first. Names that begin with a dot are left out.
func (d *files) list(t *turn, f *os.File, name string) {
	entries, err := f.ReadDir(maxListed)
	if err != nil && len(entries) == 0 && !errors.Is(err, io.EOF) {
		refuseFile(t, err)
		return
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int {
		if a.IsDir() != b.IsDir() {
			if a.IsDir() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name(), b.Name())
	})
	p, _ := pages.Get().(*page)
	p.head.Reset()
	p.head.Status = http.StatusOK
	p.text = p.text[:0]
	p.head.Add(nameContentType, valueHTML)
	p.head.Add(nameCSP, []byte(pagePolicy))
	p.head.Add(nameNoSniff, valueNoSniff)
	shown := "/"
	if name != "." {
		shown += name + "/"
	}
	b := append(p.body[:0], pageHead...)
	b = preview.Escape(b, shown)
	b = append(b, pageStyle...)
	b = preview.Escape(b, shown)
	b = append(b, "</h1><ul>"...)
	if name != "." {
		b = append(b, `<li><a href="../">../</a></li>`...)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		entry := e.Name()
		if e.IsDir() {
			entry += "/"
		}
		b = append(b, `<li><a href="`...)
		b = preview.Escape(b, (&url.URL{Path: "./" + entry}).EscapedPath())
		b = append(b, `">`...)
		b = preview.Escape(b, entry)
		b = append(b, "</a></li>"...)
	}
	p.body = append(b, "</ul></body></html>\n"...)
	p.send(t.ex)
	pages.Put(p)
	t.r.out.Add(t.ex.Log.Out)
}
