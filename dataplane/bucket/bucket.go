package bucket

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/musterhq/muster/dataplane"
)

// DefaultEndpoint is where a bucket is without another endpoint.
const DefaultEndpoint = "https://s3.amazonaws.com"

// Config says where a bucket is. Name and credentials are required.
type Config struct {
	Name string
	// Prefix goes before the names of all objects, with a slash between.
	Prefix string
	// Endpoint is a URL without a path. Default: DefaultEndpoint.
	Endpoint string
	// Region is asked of the endpoint when it is empty.
	Region string
	// AccessKeyID, SecretAccessKey and, for temporary ones, SessionToken are the
	// credentials, unless CredentialsFile names a file that holds them in AWS's shared
	// format. The file is read again every minute.
	AccessKeyID, SecretAccessKey, SessionToken string
	CredentialsFile                            string
	// Profile is the section of CredentialsFile. Default: "default".
	Profile string
	// RootCAs verify the endpoint's certificate; nil takes the system's.
	RootCAs *x509.CertPool
	// Insecure allows an http endpoint, on loopback only.
	Insecure bool
	// Retries is how often a request is made that failed for a while. Default: 3.
	Retries int
}

// Parse reads `s3://BUCKET/PREFIX`.
func Parse(text string) (name, prefix string, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", "", fmt.Errorf("%q is not of the form s3://BUCKET/PREFIX", text)
	}
	return u.Host, strings.Trim(u.Path, "/"), nil
}

// Bucket is a bucket, or what lies below a prefix in one. It is safe for
// concurrent use.
type Bucket struct {
	client    *minio.Client
	transport *http.Transport
	name      string
	prefix    string // empty, or with a slash at its end
}

var _ dataplane.ObjectStore = (*Bucket)(nil)

// New returns a bucket. Nothing is asked of it yet.
func New(cfg Config) (*Bucket, error) {
	if cfg.Name == "" {
		return nil, errors.New("bucket: no name given")
	}
	if cfg.Endpoint == "" {
		cfg.Endpoint = DefaultEndpoint
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, errors.New("bucket: the endpoint is not a URL of a host alone, such as https://s3.example.com")
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && cfg.Insecure && loopback(u.Hostname()):
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil, errors.New("bucket: the endpoint has no TLS, and plaintext was not asked for")
	case u.Scheme == "http":
		return nil, errors.New("bucket: the endpoint has no TLS: that is for loopback only")
	default:
		return nil, fmt.Errorf("bucket: the endpoint %q is neither https nor http", cfg.Endpoint)
	}
	creds, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, fmt.Errorf("bucket: %w", err)
	}
	if u.Scheme == "https" {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs}
	}
	if cfg.Retries <= 0 {
		cfg.Retries = 3
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: creds, Secure: u.Scheme == "https", Transport: transport, Region: cfg.Region, MaxRetries: cfg.Retries,
	})
	if err != nil {
		return nil, fmt.Errorf("bucket: %w", err)
	}
	b := &Bucket{client: client, transport: transport, name: cfg.Name}
	if p := strings.Trim(cfg.Prefix, "/"); p != "" {
		b.prefix = p + "/"
	}
	return b, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *Config) credentials() (*credentials.Credentials, error) {
	switch {
	case c.CredentialsFile != "":
		profile := c.Profile
		if profile == "" {
			profile = "default"
		}
		f := &fileCredentials{file: credentials.FileAWSCredentials{Filename: c.CredentialsFile, Profile: profile}}
		if _, err := f.Retrieve(); err != nil {
			return nil, fmt.Errorf("bucket: credentials: %w", err)
		}
		return credentials.New(f), nil
	case c.AccessKeyID == "" || c.SecretAccessKey == "":
		return nil, errors.New("bucket: no credentials given")
	}
	return credentials.NewStaticV4(c.AccessKeyID, c.SecretAccessKey, c.SessionToken), nil
}

// fileCredentials are those of a file that is read again now and then, so that
// renewed ones are used.
type fileCredentials struct {
	credentials.Expiry
	file credentials.FileAWSCredentials
}

const rereadCredentials = time.Minute

// Retrieve implements credentials.Provider.
func (f *fileCredentials) Retrieve() (credentials.Value, error) {
	return f.RetrieveWithCredContext(nil)
}

// RetrieveWithCredContext implements credentials.Provider.
func (f *fileCredentials) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	v, err := f.file.RetrieveWithCredContext(cc)
	if err != nil {
		return v, err
	}
	if v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return v, fmt.Errorf("%s holds none for the profile %q", f.file.Filename, f.file.Profile)
	}
	f.SetExpiration(time.Now().Add(rereadCredentials), 0)
	return v, nil
}

// Close closes idle connections.
func (b *Bucket) Close() { b.transport.CloseIdleConnections() }

// List implements dataplane.ObjectStore.
func (b *Bucket) List(ctx context.Context, prefix string) ([]dataplane.Object, error) {
	var out []dataplane.Object
	for o := range b.client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, b.explain(o.Err)
		}
		out = append(out, dataplane.Object{Name: strings.TrimPrefix(o.Key, b.prefix), Size: o.Size, Modified: o.LastModified})
	}
	if err := ctx.Err(); err != nil { // which ends a listing as if there were no more
		return nil, b.explain(err)
	}
	return out, nil
}

// maxObject bounds what is read into memory.
const maxObject = 1 << 30

// Get implements dataplane.ObjectStore.
func (b *Bucket) Get(ctx context.Context, name string) ([]byte, error) {
	o, err := b.client.GetObject(ctx, b.name, b.prefix+name, minio.GetObjectOptions{})
	if err != nil {
		return nil, b.explain(err)
	}
	defer o.Close()
	content, err := io.ReadAll(io.LimitReader(o, maxObject+1))
	switch {
	case minio.ToErrorResponse(err).Code == "NoSuchKey":
		return nil, dataplane.ErrNoObject
	case err != nil:
		return nil, b.explain(err)
	case len(content) > maxObject:
		return nil, fmt.Errorf("object %s is larger than %d bytes", b.prefix+name, maxObject)
	}
	return content, nil
}

// Put implements dataplane.ObjectStore.
func (b *Bucket) Put(ctx context.Context, name string, content []byte) error {
	// An MD5 is what every S3 checks. The usual way over plaintext, chunks with a
	// signature each, some take for the content itself.
	_, err := b.client.PutObject(ctx, b.name, b.prefix+name, bytes.NewReader(content), int64(len(content)),
		minio.PutObjectOptions{ContentType: "application/octet-stream", SendContentMd5: true, DisableContentSha256: true})
	return b.explain(err)
}

// Delete implements dataplane.ObjectStore.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	return b.explain(b.client.RemoveObject(ctx, b.name, b.prefix+name, minio.RemoveObjectOptions{}))
}

// explain says which bucket it was.
func (b *Bucket) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("bucket %s at %s: %w", b.name, b.client.EndpointURL().Host, err)
}
