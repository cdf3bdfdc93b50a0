// proxy LISTEN CONNECT [copy]: a TCP proxy.  io.Copy between two connections is
// splice(2); with "copy" it goes through a buffer of the program's own.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

type plain struct{ io.Writer } // hides ReadFrom

func forward(to, from *net.TCPConn) {
	var writer io.Writer = to
	if len(os.Args) > 3 {
		writer = plain{to}
	}
	io.Copy(writer, from)
	to.CloseWrite()
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer client.Close()
			server, err := net.Dial("tcp", os.Args[2])
			if err != nil {
				log.Print(err)
				return
			}
			defer server.Close()
			go forward(server.(*net.TCPConn), client.(*net.TCPConn))
			forward(client.(*net.TCPConn), server.(*net.TCPConn))
		}()
	}
}
