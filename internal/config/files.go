package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxFile bounds what is read of one configuration file.
const maxFile = 64 << 20

// FindFiles returns the files that `-c arg` means: the file itself, or the *.yaml of a folder in name order. Without an
// argument it is quaymaster.yaml in the working directory, else /etc/quaymaster/quaymaster.yaml.
func FindFiles(arg string) ([]string, error) {
	if arg == "" {
		for _, name := range []string{"quaymaster.yaml", "/etc/quaymaster/quaymaster.yaml"} {
			if _, err := os.Stat(name); err == nil {
				return []string{name}, nil
			}
		}
		return nil, Errors{{
			Message: "no configuration: neither quaymaster.yaml here nor /etc/quaymaster/quaymaster.yaml exists",
			Remedy:  "write one of them, or name another with -c FILE",
		}}
	}
	info, err := os.Stat(arg)
	if err != nil {
		return nil, Errors{unreadable(arg, err)}
	}
	if !info.IsDir() {
		return []string{arg}, nil
	}
	entries, err := os.ReadDir(arg)
	if err != nil {
		return nil, Errors{unreadable(arg, err)}
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && strings.HasSuffix(e.Name(), ".yaml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(arg, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, Errors{{File: arg, Message: "the folder holds no *.yaml file", Remedy: "write one there, or name a file with -c FILE"}}
	}
	slices.Sort(files)
	return files, nil
}

// ReadFiles reads the files into memory. The error is Errors.
func ReadFiles(files []string) ([]Source, error) {
	var errs Errors
	sources := make([]Source, 0, len(files))
	for _, name := range files {
		info, err := os.Stat(name)
		switch {
		case err != nil:
			errs = append(errs, unreadable(name, err))
			continue
		case info.Size() > maxFile:
			errs = append(errs, Error{File: name, Message: "the file is larger than 64 MiB", Remedy: "split it and use -c DIR"})
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			errs = append(errs, unreadable(name, err))
			continue
		}
		sources = append(sources, Source{Name: name, Bytes: b})
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return sources, nil
}

func unreadable(name string, err error) Error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Error{File: name, Message: "there is no such file", Remedy: "write it, or name another with -c FILE"}
	case errors.Is(err, fs.ErrPermission):
		return Error{File: name, Message: "the file may not be read by this user", Remedy: "change its owner or mode"}
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return Error{File: name, Message: "the file cannot be read: " + err.Error(), Remedy: "name another with -c FILE"}
}
