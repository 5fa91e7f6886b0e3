package dev

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// maxLine bounds a line of a server's output, in bytes; a longer one is broken.
const maxLine = 64 << 10

// console is where the output of several processes comes together, line by line.
// Its methods may be called concurrently.
type console struct {
	mu  sync.Mutex
	out io.Writer
}

// say writes a line of dev's own about a process.
func (c *console) say(name, format string, args ...any) {
	c.line(name, fmt.Appendf(nil, format, args...))
}

func (c *console) line(name string, text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintf(c.out, "%s | %s\n", name, text) // nobody is left to tell
}

// copy writes what r holds, each line behind the name, until r ends.
func (c *console) copy(name string, r io.Reader) {
	var line []byte
	buf := make([]byte, 8<<10)
	for {
		n, err := r.Read(buf)
		line = append(line, buf[:n]...)
		for {
			i := bytes.IndexByte(line, '\n')
			if i < 0 {
				break
			}
			c.line(name, bytes.TrimRight(line[:i], "\r"))
			line = line[i+1:]
		}
		if len(line) > maxLine || err != nil && len(line) > 0 {
			c.line(name, line)
			line = nil
		}
		if err != nil {
			return
		}
	}
}
