package muster_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module     = "github.com/musterhq/muster"
	maxLines   = 800
	protoPath  = "proto/muster/v1"
	controlAPI = "github.com/envoyproxy/go-control-plane/envoy"
)

// listedPackage is what `go list -json` says of a package of this module.
type listedPackage struct {
	ImportPath   string
	Name         string
	Doc          string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// room is the package's path below the module.
func (p listedPackage) room() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// in reports whether a path below the module lies in one of the rooms.
func in(room string, rooms ...string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool {
		return room == r || strings.HasPrefix(room, r+"/")
	})
}

func packages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []listedPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list named no package")
	}
	return all
}

// mayImport says, for the rooms of the map, which other rooms each may import.
// The longest matching room decides; a room is always free to import itself.
var mayImport = map[string][]string{
	"":                  nil,
	"proto":             nil,
	"resource":          {"proto"},
	"raftstore":         {"resource", "proto"},
	"server/compile":    {"raftstore/state", "resource", "proto"},
	"server/snapshot":   {"server/compile", "raftstore/state", "resource", "proto"},
	"manifest":          {"proto"},
	"dataplane":         {"manifest", "resource", "proto"},
	"dataplane/gateway": {"dataplane", "resource", "proto"},
	"server/ops":        nil,
	"server":            {"dataplane", "raftstore", "manifest", "resource", "proto"},
	"relay": {
		"server/compile", "server/snapshot", "server/xds", "server/fleet", "server/auth", "server/downstream", "server/ops",
		"dataplane", "manifest", "resource", "proto",
	},
	"examples": {"dataplane", "proto"},
	"cmd":      {"relay", "server", "dataplane", "raftstore", "manifest", "resource", "proto"},
	"test":     {"cmd", "relay", "server", "dataplane", "raftstore", "manifest", "resource", "proto"},
}

func ruleFor(room string) (string, []string, bool) {
	for r := room; ; r = path.Dir(r) {
		if r == "." {
			r = ""
		}
		if allowed, ok := mayImport[r]; ok && (r != "" || room == "") {
			return r, allowed, true
		}
		if r == "" {
			return "", nil, false
		}
	}
}

func TestImportsPointOneWay(t *testing.T) {
	for _, p := range packages(t) {
		room := p.room()
		rule, allowed, ok := ruleFor(room)
		if !ok {
			t.Errorf("%s lies in no room of the map: add its room to mayImport and to docs/architecture.md", room)
			continue
		}
		for _, imp := range p.Imports {
			if imp != module && !strings.HasPrefix(imp, module+"/") {
				continue
			}
			target := strings.TrimPrefix(strings.TrimPrefix(imp, module), "/")
			if !in(target, rule) && !in(target, allowed...) {
				t.Errorf("%s imports %s; %s may import only %v", room, target, rule, allowed)
			}
		}
	}
}

func TestTestsDoNotImportAgainstTheDirection(t *testing.T) {
	for _, p := range packages(t) {
		if !in(p.room(), "dataplane") {
			continue
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			target := strings.TrimPrefix(imp, module+"/")
			if in(target, "server", "cmd") {
				t.Errorf("the tests of %s import %s; dataplane knows no server", p.room(), target)
			}
		}
	}
}

// pureRooms hold no I/O, clock or transport: input in, output out.
var pureRooms = []string{"manifest", "resource", "raftstore/state", "server/compile", "server/snapshot"}

func TestPureRoomsImportNoTransportRaftOrStore(t *testing.T) {
	banned := []string{
		"google.golang.org/grpc", "github.com/hashicorp/raft", "go.etcd.io/bbolt",
		"net/http", "os", "os/exec", "log/slog",
	}
	for _, p := range packages(t) {
		if !in(p.room(), pureRooms...) {
			continue
		}
		for _, imp := range p.Imports {
			// A status code is a value, not a transport.
			if imp == "google.golang.org/grpc/codes" || imp == "google.golang.org/grpc/status" {
				continue
			}
			for _, b := range banned {
				std := !strings.Contains(b, ".")
				if imp == b || !std && strings.HasPrefix(imp, b+"/") {
					t.Errorf("%s is pure and imports %s", p.room(), imp)
				}
			}
		}
	}
}

// impure holds, by package, the functions that look at or change the world.
var impure = map[string][]string{
	"time": {"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"},
	"net":  {"Dial", "DialTimeout", "Listen", "ListenPacket", "LookupHost", "LookupIP", "LookupAddr", "ResolveTCPAddr", "Interfaces"},
}

func TestPureRoomsReadNoClockAndStartNoGoroutine(t *testing.T) {
	for _, p := range packages(t) {
		pure := in(p.room(), pureRooms...)
		for _, name := range p.GoFiles {
			if !pure && !isSessionCore(p.room(), name) {
				continue
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s: a pure room starts a goroutine", fset.Position(n.Pos()))
				case *ast.SelectorExpr:
					if id, ok := n.X.(*ast.Ident); ok && slices.Contains(impure[id.Name], n.Sel.Name) {
						t.Errorf("%s: a pure room uses %s.%s", fset.Position(n.Pos()), id.Name, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// isSessionCore picks the files of server/xds that are the pure state machine.
func isSessionCore(room, file string) bool {
	return room == "server/xds" && slices.Contains([]string{"session.go", "delta.go", "sotw.go"}, file)
}

func TestSessionCoreImportsNoTransport(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			if !isSessionCore(p.room(), name) {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				imp, _ := strconv.Unquote(spec.Path.Value)
				if imp == "google.golang.org/grpc" || imp == "net" || strings.HasPrefix(imp, "github.com/hashicorp/raft") {
					t.Errorf("%s/%s is the session's core and imports %s", p.room(), name, imp)
				}
			}
		}
	}
}

func TestOnlyMessagesOfGoControlPlaneAreUsed(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "github.com/envoyproxy/go-control-plane") &&
				imp != controlAPI && !strings.HasPrefix(imp, controlAPI+"/") {
				t.Errorf("%s imports %s; only the messages below %s are used", p.room(), imp, controlAPI)
			}
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	for _, p := range packages(t) {
		if slices.Contains([]string{"util", "utils", "common", "helpers", "helper", "misc"}, path.Base(p.ImportPath)) {
			t.Errorf("%s: name the package after what is in it", p.room())
		}
		switch {
		case len(p.GoFiles) == 0 || p.room() == protoPath:
		case p.Name == "main":
			if p.Doc == "" {
				t.Errorf("the command %s has no package comment", p.room())
			}
		case !slices.Contains(p.GoFiles, "doc.go"):
			t.Errorf("%s has no doc.go", p.room())
		}
	}
}

func TestFilesStaySmallEnoughToRead(t *testing.T) {
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".pb.go") {
			return nil
		}
		if n, err := countLines(name); err != nil {
			return err
		} else if n > maxLines {
			t.Errorf("%s has %d lines; the limit is %d", name, n, maxLines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func countLines(name string) (int, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		n++
	}
	return n, lines.Err()
}
