package cli

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	_ "github.com/musterhq/muster/resource/xdstypes" // what an xds_resource may hold
	"github.com/musterhq/muster/server/compile/plugin"
)

// maxFile bounds one input file.
const maxFile = 64 << 20

// source is the declared state that files hold, with the place of each object.
type source struct {
	args      []string // as the user wrote them, for the commands we suggest
	resources []*musterv1.Resource
	places    map[resource.Key]resource.Positions
}

// readSource decodes and validates files, directories or stdin ("-"). Every
// problem of every file is reported.
func (a *app) readSource(args []string) (*source, error) {
	if len(args) == 0 {
		return nil, usagef("no file: -f FILE, -f DIR or -f -")
	}
	s := &source{args: args, places: map[resource.Key]resource.Positions{}}
	var problems resource.Problems
	for _, arg := range args {
		names, err := a.expand(arg)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			data, err := a.readInput(name)
			if err != nil {
				return nil, err
			}
			shown := name
			if name == "-" {
				shown = "stdin"
			}
			file, ps := resource.DecodeFile(shown, data)
			problems = append(problems, ps...)
			if file != nil {
				problems = append(problems, s.add(file)...)
			}
		}
	}
	problems = append(problems, s.validate(a.env.Now())...)
	if len(problems) > 0 {
		return nil, &invalidError{problems: inOrder(problems)}
	}
	return s, nil
}

// expand lists a directory's YAML and JSON files, in the order of their paths.
func (a *app) expand(arg string) ([]string, error) {
	if arg == "-" {
		return []string{"-"}, nil
	}
	info, err := os.Stat(a.env.path(arg))
	if err != nil {
		return nil, fmt.Errorf("read files: %w", err)
	}
	if !info.IsDir() {
		return []string{arg}, nil
	}
	var names []string
	err = fs.WalkDir(os.DirFS(a.env.path(arg)), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && path != "." {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			if !d.IsDir() {
				names = append(names, filepath.Join(arg, filepath.FromSlash(path)))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read files: %w", err)
	}
	if len(names) == 0 {
		return nil, usagef("%s holds no .yaml, .yml or .json file", arg)
	}
	slices.Sort(names)
	return names, nil
}

func (a *app) readInput(name string) ([]byte, error) {
	var r io.Reader = a.env.Stdin
	if name != "-" {
		f, err := os.Open(a.env.path(name))
		if err != nil {
			return nil, fmt.Errorf("read files: %w", err)
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxFile {
		return nil, usagef("%s is larger than %d MiB", name, maxFile>>20)
	}
	return data, nil
}

// add takes over a file's objects; one that another file holds already is a problem.
func (s *source) add(file *resource.File) resource.Problems {
	var problems resource.Problems
	for _, r := range file.Resources {
		key := resource.KeyOf(r)
		if first, dup := s.places[key]; dup {
			p := resource.Problem{Object: key, Code: resource.CodeDuplicate, Message: fmt.Sprintf("%s is defined twice", key)}
			if name, line, _, _, ok := first.At(key, ""); ok {
				p.Message = fmt.Sprintf("%s is also defined at %s:%d", key, name, line)
			}
			problems = append(problems, at(p, file.Positions, key))
			continue
		}
		s.places[key] = file.Positions
		s.resources = append(s.resources, r)
	}
	return problems
}

// validate judges each object by itself. References are the server's to check:
// a file may refer to objects that are in the group already.
func (s *source) validate(now time.Time) resource.Problems {
	v := resource.Validator{Plugins: plugin.Set(), Now: now}
	var problems resource.Problems
	for _, r := range s.resources {
		for _, p := range v.Resource(r) {
			problems = append(problems, at(p, s.places[resource.KeyOf(r)], resource.KeyOf(r)))
		}
	}
	return problems
}

// at fills in where in a file a problem stands.
func at(p resource.Problem, places resource.Positions, key resource.Key) resource.Problem {
	p.Object = key
	if p.Line > 0 {
		return p
	}
	if file, line, col, excerpt, ok := places.At(key, p.Path); ok {
		p.File, p.Line, p.Column, p.Excerpt = file, line, col, excerpt
	}
	return p
}

// puts makes the changes that bring the group to the declared objects.
func (s *source) puts() []*musterv1.Change {
	changes := make([]*musterv1.Change, len(s.resources))
	for i, r := range s.resources {
		changes[i] = &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
	}
	return changes
}

// flags repeats the -f flags of the command line, quoted for a shell.
func (s *source) flags() string {
	parts := make([]string, len(s.args))
	for i, arg := range s.args {
		parts[i] = "-f " + shellQuote(arg)
	}
	return strings.Join(parts, " ")
}

func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@,+", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
