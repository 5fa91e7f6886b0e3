package resource

import (
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Positions says where in a text the fields of decoded objects stand. The zero
// Positions knows no place.
type Positions struct {
	objects map[Key]*object
	// only is the single object of DecodeObject, whatever its key becomes.
	only *object
}

// object is where one object was decoded from.
type object struct {
	src   *source
	place *place
	// within is the path of the object in its file.
	within string
}

// place is where a field stands and, under their canonical names, where its
// parts stand.
type place struct {
	at span
	// faulty says that the decoder reported a problem here, so that whatever
	// became of the value says nothing.
	faulty bool
	parts  []part
}

type part struct {
	seg   string
	place *place
}

// child returns the part of that name, made when it is not there.
func (p *place) child(seg string, at span) *place {
	if p == nil {
		return nil
	}
	for i := range p.parts {
		if p.parts[i].seg == seg {
			return p.parts[i].place
		}
	}
	made := &place{at: at}
	p.parts = append(p.parts, part{seg, made})
	return made
}

// grow adds a part of which there is none of that name yet.
func (p *place) grow(seg string, at span) *place {
	if p == nil {
		return nil
	}
	made := &place{at: at}
	p.parts = append(p.parts, part{seg, made})
	return made
}

// silent says that nothing was reported about the field yet.
func (p *place) silent(seg string) bool {
	for i := range p.parts {
		if p.parts[i].seg == seg {
			return !p.parts[i].place.faulty
		}
	}
	return true
}

// find returns the place of the path, or that of its nearest parent; exact tells which.
func (p *place) find(path string) (found *place, exact bool) {
	path = shownPath(path)
	for path != "" {
		seg, rest := cutPath(path)
		var next *place
		for i := range p.parts {
			if p.parts[i].seg == seg {
				next = p.parts[i].place
				break
			}
		}
		if next == nil {
			return p, false
		}
		if next.faulty {
			return next, true
		}
		p, path = next, rest
	}
	return p, true
}

// At returns the place of a field; path as in Problem, "" for the object itself.
// Of a field that is not in the text it is the place of the nearest parent. ok
// is false when the object did not come from the text. Line and column count
// from 1, columns in characters. The excerpt shows no secret.
func (p Positions) At(key Key, path string) (file string, line, col int, excerpt string, ok bool) {
	o := p.object(key)
	if o == nil {
		return "", 0, 0, "", false
	}
	found, _ := o.place.find(path)
	return o.src.name, int(found.at.line), int(found.at.col), o.src.excerpt(found.at), true
}

func (p Positions) object(key Key) *object {
	if o := p.objects[key]; o != nil {
		return o
	}
	return p.only
}

// Locate fills in Within, file, line, column and excerpt of the problems whose
// Object is in the text, in place, and returns them.
func (p Positions) Locate(ps Problems) Problems {
	for i := range ps {
		if ps[i].Line != 0 || (ps[i].Object == Key{} && p.only == nil) {
			continue
		}
		if file, line, col, excerpt, ok := p.At(ps[i].Object, ps[i].Path); ok {
			ps[i].File, ps[i].Line, ps[i].Column, ps[i].Excerpt = file, line, col, excerpt
			ps[i].Within = p.object(ps[i].Object).within
		}
	}
	return ps
}

// dropFaulty removes the problems at places about which the decoder has
// complained already.
func (p Positions) dropFaulty(ps Problems) Problems {
	kept := ps[:0]
	for _, problem := range ps {
		if o := p.object(problem.Object); o != nil {
			if found, _ := o.place.find(problem.Path); found.faulty {
				continue
			}
		}
		kept = append(kept, problem)
	}
	return kept
}

// joinPath appends a path to another.
func joinPath(base, path string) string {
	if base == "" || path == "" || path[0] == '[' {
		return base + path
	}
	return base + "." + path
}

// nameSegment is how a path names a field or a map's key: `name`, or `["odd.name"]`
// when the name holds other than letters, digits, `_` and `-`.
func nameSegment(name string) string {
	if name == "" {
		return `[""]`
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !(c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			return "[" + strconv.Quote(name) + "]"
		}
	}
	return name
}

// indexSegment is how a path names an element of a list.
func indexSegment(i int) string { return "[" + strconv.Itoa(i) + "]" }

// FieldPath joins names of fields and map keys to a path as Problem has it.
func FieldPath(names ...string) string {
	path := ""
	for _, name := range names {
		path = joinPath(path, nameSegment(name))
	}
	return path
}

// cutPath splits the first segment off a path.
func cutPath(path string) (seg, rest string) {
	if strings.HasPrefix(path, `["`) {
		if quoted, err := strconv.QuotedPrefix(path[1:]); err == nil && strings.HasPrefix(path[1+len(quoted):], "]") {
			cut := len(quoted) + 2
			return path[:cut], strings.TrimPrefix(path[cut:], ".")
		}
	}
	if strings.HasPrefix(path, "[") {
		if i := strings.IndexByte(path, ']'); i > 0 {
			return path[:i+1], strings.TrimPrefix(path[i+1:], ".")
		}
	}
	if i := strings.IndexAny(path, ".["); i > 0 {
		return path[:i], strings.TrimPrefix(path[i:], ".")
	}
	return path, ""
}

// shownPath masks the keys of a path that do not look like names.
func shownPath(path string) string {
	if !strings.Contains(path, `["`) {
		return path
	}
	out := ""
	for path != "" {
		var seg string
		seg, path = cutPath(path)
		if quoted, isKey := strings.CutPrefix(seg, "["); isKey && strings.HasPrefix(quoted, `"`) {
			if key, err := strconv.Unquote(strings.TrimSuffix(quoted, "]")); err == nil {
				seg = shownSegment(key)
			}
		}
		out = joinPath(out, seg)
	}
	return out
}

// register notes that the object of that key came from the text. The first of
// several wins.
func (p *Positions) register(r *musterv1.Resource, o *object) {
	if p.objects == nil {
		p.objects = map[Key]*object{}
	}
	if key := KeyOf(r); p.objects[key] == nil {
		p.objects[key] = o
	}
}
