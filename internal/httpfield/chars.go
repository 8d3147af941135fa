package httpfield

// Set is a set of what a byte may be part of.
type Set uint8

// What a byte may be part of.
const (
	Token    Set = 1 << iota // of a token (RFC 9110 5.6.2)
	Odd                      // of a token, but neither letter, digit nor '-'
	Target                   // of a request target: printable, and never a delimiter of text around it
	Text                     // of a field value: SP and VCHAR
	HostName                 // of a host's name
)

// Of says what c may be part of.
func Of(c byte) Set { return chars[c] }

// Is reports whether c may be part of one of set.
func Is(c byte, set Set) bool { return chars[c]&set != 0 }

// chars and fold describe every byte; they are never written after they are
// built.
var (
	chars = charTable()
	fold  = foldTable()
)

func charTable() (t [256]Set) {
	for c := byte(' '); c <= '~'; c++ {
		t[c] = Text
		switch {
		case alnum(c) || c == '-':
			t[c] |= Token | Target
		case isIn(c, "!#$%&'*+.^_`|~"):
			t[c] |= Token | Odd | Target
		case !isIn(c, " \"<>"):
			t[c] |= Target
		}
	}
	for c := range t {
		if alnum(byte(c)) || isIn(byte(c), "-._") {
			t[c] |= HostName
		}
	}
	// A fragment never travels (RFC 9112 3.2), and who drops it sees another path.
	t['#'] &^= Target
	return t
}

// foldTable maps letters to lower case and every other character of a token to
// '-': CGI, WSGI, FastCGI and PHP turn at least '-' and '_', some of them all
// punctuation, into one character.
func foldTable() (t [256]byte) {
	for c := 0; c < 256; c++ {
		switch {
		case alnum(byte(c)):
			t[c] = Lower(byte(c))
		case chars[c]&Token != 0:
			t[c] = '-'
		}
	}
	return t
}

func alnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= Lower(c) && Lower(c) <= 'z'
}

func isIn(c byte, set string) bool {
	for i := 0; i < len(set); i++ {
		if set[i] == c {
			return true
		}
	}
	return false
}
